"""What only a GPU can show, in one command with a budget: correctness first, then the speed of every part."""
