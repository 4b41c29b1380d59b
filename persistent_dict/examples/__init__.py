"""Programs that show a way of using the package: ``python -m persistent_dict.examples.pulses``."""
