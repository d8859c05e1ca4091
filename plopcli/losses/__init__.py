"""Loss terms as pure functions of tensors."""
