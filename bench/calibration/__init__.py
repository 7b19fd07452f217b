"""Parts of the calibration pass; ``bench.calibrate`` puts them together."""
