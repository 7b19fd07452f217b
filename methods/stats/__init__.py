"""What may be measured: one file for each group of statistics, with definitions and the sums that they are made of."""
