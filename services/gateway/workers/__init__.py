"""The workers behind the gateway: which there are, which is asked, and who goes on when one fails."""
