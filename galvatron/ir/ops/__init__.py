"""The table of operators (`table`): what the compiler knows of each (`operator`), by family, in a line or two."""
