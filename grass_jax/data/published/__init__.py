"""Potsdam, Vaihingen and LoveDA, from the archives as their owners publish them: begin with `facts.py`."""
