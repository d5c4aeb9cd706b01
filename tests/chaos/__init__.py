"""Hundreds of turns while workers, servers and wires fail; an auditor then looks for what was lost or doubled."""
