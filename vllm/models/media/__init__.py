"""Models that see and hear: their towers, and how those are joined with a decoder of ours."""
