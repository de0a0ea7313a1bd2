"""The lab: real data, models, arms and comparisons, behind the extra `lab`."""
