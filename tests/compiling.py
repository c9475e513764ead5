"""How a test compiles what the quick way of `tests/conftest.py` would round anew."""

# Fused as users have it: equal operations in equal ways, whatever the program around
# them, and functions like tanh to the last digits.
AS_USERS = {"xla_cpu_use_fusion_emitters": True}
