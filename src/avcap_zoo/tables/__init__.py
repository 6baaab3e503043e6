"""Result tables and reports."""
