"""The demonstration: real servers from wheels, and what `tailrace demo` does with them."""
