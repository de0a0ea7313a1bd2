"""The model `merged-cnn`: networks that were fine-tuned apart, and coefficients that merge them."""
