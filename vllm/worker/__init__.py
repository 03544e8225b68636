"""From a batch to its results, on the device."""
