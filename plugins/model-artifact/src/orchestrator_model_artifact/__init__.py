"""Models from files, scored inside the service: MLflow folders and ONNX."""
