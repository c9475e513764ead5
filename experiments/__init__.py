"""Programs to launch: `python -m experiments.NAME --config=configs/NAME.py`."""
