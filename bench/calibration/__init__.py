"""Parts of the calibration pass; ``bench.calibration.calibrate`` puts them together."""
