"""The book's machinery: theory, figures, studies and sweeps. The library never imports it."""
