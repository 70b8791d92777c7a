"""A finished index over time: documents appended and deleted, everything checked and repaired."""
