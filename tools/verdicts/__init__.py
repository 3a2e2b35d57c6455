"""Verdicts on public samplers: what each claims, what it does on exact fields, and the pages that say so."""
