"""The model's parts, traced once each, become one ONNX graph whose weights have names but no values yet."""
