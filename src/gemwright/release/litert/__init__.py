"""LiteRT (`.tflite`) and LiteRT-LM (`.litertlm`): decoders for phones, browsers and small computers."""
