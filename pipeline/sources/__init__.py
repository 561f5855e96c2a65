"""What there is to tag: tables, S3 inventories, archives and folders, each as rows of the manifest's schema."""
