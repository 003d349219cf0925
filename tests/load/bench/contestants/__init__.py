"""The programs that are measured, each as its author would write it; `table` lists them. None of them is imported by the harness."""
