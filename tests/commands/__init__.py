"""The commands of the Makefile that show the application: what people see of the sandbox."""
