"""Models in images of an AWS ECR registry."""
