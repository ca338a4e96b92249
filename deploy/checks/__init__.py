"""What is deployed, held against the tools of those who run it: `make deploy-check`. A tool that is missing fails."""
