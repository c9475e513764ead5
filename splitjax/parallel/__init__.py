"""The cloud on many devices: meshes, schedules, plans and pipelines."""
