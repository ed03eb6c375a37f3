"""How well faster rankings agree with the exact one."""
