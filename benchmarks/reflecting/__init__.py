"""What a small model learns of hidden rules, in eight small worlds and in nine ways: `make bench-reflect`."""
