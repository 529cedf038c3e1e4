"""Models in images of AWS's registry ECR."""
