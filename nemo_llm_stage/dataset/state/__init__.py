"""What a running job keeps in its state folder for people and other processes: who runs it, its status, orders."""
