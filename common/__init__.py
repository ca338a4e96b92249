"""What two or more services share; knows no service."""
