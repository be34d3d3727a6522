"""Pure functions of tensors: no modules, no settings objects, nothing optional."""
