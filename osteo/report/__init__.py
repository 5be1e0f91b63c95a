"""What a person reads: tables, figures, pages."""
