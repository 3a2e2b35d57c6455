"""Few-step generators with one evaluation a step: jump tables, heads, and maps on nodes."""
