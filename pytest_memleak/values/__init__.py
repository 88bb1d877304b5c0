"""What tensors hold: values that are no finite numbers, and whether two ranks hold the same bits."""
