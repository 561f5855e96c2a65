"""What an output holds: its folders, its runs' records, its files, and the SQL views over them."""
