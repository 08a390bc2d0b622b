"""What commands show: tables and questions on a terminal."""
