"""Images, videos and sounds of a prompt: fetched, checked, and made ready for a model's tower."""
