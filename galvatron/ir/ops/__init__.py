"""What is known of operators: which dimensions of their operands and results are the same (`rules`, in the `notation`
of named dimensions; `views` for reshapes)."""
