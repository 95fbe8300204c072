"""Leadership, sealing, and what is pending."""
