"""Images: loading, preprocessing for the vision tower, and boxes and masks in model output."""
