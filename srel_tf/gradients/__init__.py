"""A Keras model as a function of its weights, and gradients of single examples, layer by layer."""
