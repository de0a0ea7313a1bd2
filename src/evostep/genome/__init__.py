"""The genome: weights as named coordinate tensors, and the recipes of members around them."""
