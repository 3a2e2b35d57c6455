"""Verification of anyone's flow map: its contract, its identities, and its ends against the exact flow."""
