"""`report.html`, its charts and pictures, from the journal alone; imported by whoever asks for them."""
