"""How good a model is: errors, parity, what was forgotten, where structures relax to."""
