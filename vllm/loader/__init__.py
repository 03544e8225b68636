"""Find a model's files (`find`), read them (`read`) and fill the windows of a module (`fill`)."""
