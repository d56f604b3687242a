"""Predictions beside measurements: the layer classes of a program timed on this device, and the steps of a job compared
with what was predicted of them."""
