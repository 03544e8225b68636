"""One function per operation.  `reference` holds the plain-torch versions: the truth of the tests and the fallback on
any device.  Layers import from here and never ask which device they run on."""
