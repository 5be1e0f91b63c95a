"""Pictures beside what is known of the patients: what either adds, and whose lead it is."""
